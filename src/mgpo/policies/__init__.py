"""Policies: one interface and one turn loop over transformers, vLLM and endpoints."""
