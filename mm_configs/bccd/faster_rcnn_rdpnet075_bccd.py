# BCCD, blood cells in VOC layout (MIT licence), trainval -> test. The data is looked for in $BCCD, else in data/BCCD.
_base_ = "../small/faster_rcnn_rdpnet075_small.py"
data_root = "{{$BCCD:data/BCCD}}/"
max_epochs = 6
classes = dict(classes=("RBC", "WBC", "Platelets"))
where = dict(data_root=data_root, data_prefix=dict(sub_data_root=""), metainfo=classes)

model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
train_dataloader = dict(dataset=dict(dataset=dict(ann_file="ImageSets/Main/trainval.txt", **where)))
val_dataloader = dict(dataset=dict(ann_file="ImageSets/Main/test.txt", **where))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=max_epochs, val_interval=3)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True),  # to the last step, by itself
]
