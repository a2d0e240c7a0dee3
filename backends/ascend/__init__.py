"""Huawei Ascend: its MLA operators return no lse; refuses with the way forward."""
