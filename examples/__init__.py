"""Examples to lift code from; installed as ``flashmla_hub.examples``."""
