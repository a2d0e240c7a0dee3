"""AMD Instinct: AITER's MLA decode."""
