"""T-Head PPU: FlashMLA-for-sail."""
