"""The Acme port as a backend of flashmla_hub."""
