# The drawn data set of `rdpnet sample-voc data`, in a few minutes on two CPU cores.
_base_ = '../small/faster_rcnn_rdpnet075_small.py'
max_epochs = 14
train_cfg = dict(max_epochs=max_epochs, val_interval=7)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs, convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
randomness = dict(seed=0)
