"""MetaX C500/C550/C588 and C600: FlashMLA and mcFlashMLA."""
