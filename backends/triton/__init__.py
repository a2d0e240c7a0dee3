"""The portable backend: MLA decode and sparse attention in Triton (and, on Hopper, Gluon).

plugin.py declares, config.py picks tile shapes, launch.py and bound.py call the kernels in
dense.py, sparse.py, combine.py and, with gluon_tiles.py, hopper_gluon.py. Nothing else imports
triton.
"""
