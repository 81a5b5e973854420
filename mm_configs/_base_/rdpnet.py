# What every config here has: the package, evaluation on the deploy form, and a look for the data before all else.
custom_imports = dict(imports=["rdpnet_timm.openmmlab"], allow_failed_imports=False)
custom_hooks = [dict(type="ReparameterizeHook")]
runner_type = "DataCheckingRunner"
