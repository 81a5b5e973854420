# The same without reparameterisation before evaluation: every figure has to come out the same.
_base_ = "faster_rcnn_rdpnet075_bccd.py"
custom_hooks = [dict(type="SeedByProgressHook")]
