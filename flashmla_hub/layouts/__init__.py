"""Layouts of quantised latent caches: what the bytes of a token mean. Public face: kv_format."""
