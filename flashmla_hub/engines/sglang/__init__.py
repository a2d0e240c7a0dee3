"""SGLang: the hub behind ``--attention-backend flashmla``. See docs/engines.md."""

from flashmla_hub.engines.sglang.plugin import check as check
from flashmla_hub.engines.sglang.plugin import register as register
