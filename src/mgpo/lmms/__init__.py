"""The two-turn policy as a model of lmms-eval, which finds it by the entry point `lmms_eval.models`."""
