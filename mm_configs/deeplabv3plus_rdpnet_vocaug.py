# DeepLabV3+, RDPNet-1.25x, VOC2012 with the augmented set (SegmentationClassAug, ImageSets/Segmentation/aug.txt, made
# by mmsegmentation's tools/dataset_converters/voc_aug.py).
_base_ = "deeplabv3plus_rdpnet_voc.py"
train = _base_.train_dataloader.dataset
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ConcatDataset",
        datasets=[
            train,
            dict(
                type=train.type,
                data_root=train.data_root,
                data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
                ann_file="ImageSets/Segmentation/aug.txt",
                pipeline=train.pipeline,
            ),
        ],
    )
)
