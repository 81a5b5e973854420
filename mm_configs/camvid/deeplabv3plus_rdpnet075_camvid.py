# CamVid in SegNet's form (480x360, 11 classes, 11 = void), train -> test. Looked for in $CAMVID, else in data/camvid.
_base_ = "../small/deeplabv3plus_rdpnet075_small.py"
data_root = "{{$CAMVID:data/camvid}}"
void = 11
max_iters = 1500
classes = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
palette = [
    [128, 128, 128],
    [128, 0, 0],
    [192, 192, 128],
    [128, 64, 128],
    [60, 40, 222],
    [128, 128, 0],
    [192, 128, 128],
    [64, 64, 128],
    [64, 0, 128],
    [64, 64, 0],
    [0, 128, 192],
]

model = dict(
    data_preprocessor=dict(seg_pad_val=void),
    decode_head=dict(num_classes=11, ignore_index=void),
    auxiliary_head=dict(num_classes=11, ignore_index=void),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(256, 256), cat_max_ratio=0.75, ignore_index=void),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
camvid = dict(
    _delete_=True,
    type="mmseg.BaseSegDataset",
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    img_suffix=".jpg",
    seg_map_suffix=".png",
)

train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_prefix=dict(img_path="images/train", seg_map_path="labels/train"), pipeline=train_pipeline, **camvid
    ),
)
val_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path="images/test", seg_map_path="labels/test"), pipeline=test_pipeline, **camvid)
)
test_dataloader = val_dataloader
val_evaluator = dict(ignore_index=void)
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", eta_min=1e-5, power=0.9, begin=50, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
