"""How `mgpo-tiny` is made; its card is in `mgpo/assets/mgpo-tiny/README.md`."""
