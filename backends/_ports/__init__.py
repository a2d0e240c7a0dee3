"""What the adapters of vendors' ports share: whose distribution is whose, how a generation of the
FlashMLA interface is called, and how rows are made safe for kernels that trust their inputs.
Names no backend and is none."""
