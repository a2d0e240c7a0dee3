"""Bare functions as a port publishes them, right or harmful, for ``--call``."""

import os
import signal
import time

import flashmla_hub


def flash_mla_with_kvcache(
    q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits,
    softmax_scale=None, causal=False,
):  # fmt: skip
    """The first published generation's signature, right."""
    return flashmla_hub.flash_mla_with_kvcache(
        q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale=softmax_scale,
        causal=causal, backend="torch",
    )  # fmt: skip


def get_mla_metadata(cache_seqlens, num_heads_per_head_k, num_heads_k):
    return cache_seqlens.new_zeros((1, 8)), cache_seqlens.new_zeros(len(cache_seqlens) + 1)


def harmful(q, *args, **kwargs):
    """Exits for 32 heads, hangs for 64, dies of a signal for 128; else right."""
    heads = q.shape[2]
    if heads == 32:
        os._exit(1)
    if heads == 64:
        time.sleep(600)
    if heads == 128:
        os.kill(os.getpid(), signal.SIGSEGV)
    return flash_mla_with_kvcache(q, *args, **kwargs)


def base_2(*args, **kwargs):
    out, lse = flash_mla_with_kvcache(*args, **kwargs)
    return out, lse / 0.6931471805599453


def interrupted(q, *args, **kwargs):
    """Ctrl-C at 32 heads."""
    if q.shape[2] == 32:
        raise KeyboardInterrupt
    return flash_mla_with_kvcache(q, *args, **kwargs)
