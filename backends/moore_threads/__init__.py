"""Moore Threads S5000: MT-flashMLA and its successor, MATE."""
