# What every config here has: the package, evaluation on the deploy form, a look for the data before all else, and
# random numbers by which a training that was killed and is resumed ends as if it had not been.
custom_imports = dict(imports=["rdpnet_timm.openmmlab"], allow_failed_imports=False)
custom_hooks = [dict(type="ReparameterizeHook"), dict(type="SeedByProgressHook")]
randomness = dict(seed=0)
runner_type = "DataCheckingRunner"
