"""The turn protocol as an agent loop of verl: `mgpo.verl.agent_loop.MGPOAgentLoop`. It needs `pip install "mgpo[verl]"`."""
