"""Rules that tell which accelerator a device is, one plugin module per vendor, owned by no backend.

A rule reads its :class:`~flashmla_hub.device.DeviceProbe` only, imports no vendor library, starts
no subprocess, and is exclusive by itself: it tests a sign that no other vendor shows. Several
vendors pose as ``cuda`` with a ``torch.version.cuda`` of their own, so no rule claims a device for
want of a better owner.
"""
