"""DeepSeek's own FlashMLA, or a snapshot of it that someone keeps, as a backend."""
