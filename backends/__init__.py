"""The built-in backends and device rules, listed once: setup.py makes the entry points from this
table, and an uninstalled checkout uses it as it is. Imports nothing."""

BUILTINS: dict[str, str] = {
    "device_cpu": "flashmla_hub.backends.devices.cpu",
    "device_nvidia": "flashmla_hub.backends.devices.nvidia",
}
