"""``python -m flashmla_hub``: the same as the command ``flashmla-hub``."""

import sys

from flashmla_hub.cli import main

sys.exit(main())
