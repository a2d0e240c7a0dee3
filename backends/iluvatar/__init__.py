"""Iluvatar CoreX: ixformer's paged MLA, and its build of flash_mla."""
