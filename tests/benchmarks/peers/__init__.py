"""Other programs that bring many LoRA adapters into one thing, each run as it is behind the same few calls."""
