# The drawn data set of `rdpnet sample-voc data`, in a few minutes on two CPU cores.
_base_ = "../small/deeplabv3plus_rdpnet075_small.py"
max_iters = 120
# Nine tenths of the pixels are background: with equal weights that is all a short training learns. A sum, because
# mmsegmentation's weighted mean fails on VOC's border label; 1 / 30,000 makes it about the mean.
loss = dict(reduction="sum", class_weight=[0.05] + [1.0] * 20)
model = dict(
    data_preprocessor=dict(size=(96, 128)),
    decode_head=dict(loss_decode=dict(loss_weight=1 / 30_000, **loss)),
    auxiliary_head=dict(loss_decode=dict(loss_weight=0.4 / 30_000, **loss)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", scale=(128, 96)),  # whole pictures at half size: more objects a second than in crops
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 96)),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type="PolyLR", eta_min=1e-5, power=0.9, begin=10, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
