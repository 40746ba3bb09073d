"""What the commands in ``tools`` and ``demo`` share: checks of arguments, and MMDetection's installed tools."""
