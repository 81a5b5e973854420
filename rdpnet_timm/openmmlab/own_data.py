"""What a config has to change for pictures of one's own in VOC's layout, in one call."""

from pathlib import Path
from typing import Any, Dict, Sequence, Tuple, Union

__all__ = ["detection", "segmentation"]

Settings = Dict[str, Any]


def detection(
    folder: Union[str, Path],
    classes: Sequence[str],
    size: Tuple[int, int],
    epochs: int,
    batch_size: int = 4,
    train: str = "train",
    val: str = "val",
) -> Settings:
    """Settings for a Faster R-CNN config of ``mm_configs`` to train on boxes of one's own.

    Args:
        folder: holds ``JPEGImages/NAME.jpg``, ``Annotations/NAME.xml`` and ``ImageSets/Main/{train,val}.txt``, a name a
            line.
        classes: names of the objects, as the XML files have them.
        size: width and height that pictures are scaled into, in pixels; their proportions are kept.
        epochs: passes over the training pictures; the learning rate falls to 0 over them.
        batch_size: pictures a step.
        train: name of the list to train on.
        val: name of the list to evaluate on.

    Returns:
        What the config is to be updated with: ``globals().update(detection(...))``.

    Raises:
        TypeError: ``classes`` is one string, or a set.
        ValueError: no classes, or one twice; a number that is not above 0.
    """
    _check(classes, size, epochs, batch_size)
    load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)]
    resize = _resize(size)
    meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")

    train_pipeline = [*load, resize, dict(type="RandomFlip", prob=0.5), dict(type="PackDetInputs")]
    test_pipeline = [load[0], resize, load[1], dict(type="PackDetInputs", meta_keys=meta_keys)]

    def dataset(split: str, **others: Any) -> Settings:
        return dict(
            _delete_=True,
            type="XMLDataset",  # VOCDataset has a palette of 20 colours, and one more class cannot be drawn
            data_root=str(folder),
            data_prefix=dict(sub_data_root=""),
            ann_file=f"ImageSets/Main/{split}.txt",
            metainfo=dict(classes=tuple(classes)),
            **others,
        )

    training = dataset(train, filter_cfg=dict(filter_empty_gt=True, bbox_min_size=1), pipeline=train_pipeline)
    validation = dataset(val, test_mode=True, pipeline=test_pipeline)
    return dict(
        model=dict(roi_head=dict(bbox_head=dict(num_classes=len(classes)))),
        train_pipeline=train_pipeline,
        test_pipeline=test_pipeline,
        train_dataloader=dict(batch_size=batch_size, dataset=training),
        val_dataloader=dict(dataset=validation),
        test_dataloader=dict(dataset=validation),
        train_cfg=dict(max_epochs=epochs, val_interval=max(1, epochs // 5)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
            dict(type="CosineAnnealingLR", by_epoch=True, convert_to_iter_based=True),  # to the last step, by itself
        ],
    )


def segmentation(
    folder: Union[str, Path],
    classes: Sequence[str],
    size: Tuple[int, int],
    epochs: int,
    batch_size: int = 4,
    train: str = "train",
    val: str = "val",
) -> Settings:
    """Settings for a DeepLabV3+ config of ``mm_configs`` to train on masks of one's own.

    Args:
        folder: holds ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` and
            ``ImageSets/Segmentation/{train,val}.txt``, a name a line. A mask's pixels are numbers of classes, 255 where
            there is none.
        classes: names in the order of these numbers, that of the background among them.
        size: width and height that pictures are scaled into, and of the crops that are trained on, in pixels.
        epochs: passes over the training pictures; the learning rate falls to 0 over them.
        batch_size: crops a step, at least 2 for the batch norms; what does not fill a batch is left out of an epoch.
        train: name of the list to train on.
        val: name of the list to evaluate on.

    Returns:
        What the config is to be updated with: ``globals().update(segmentation(...))``.

    Raises:
        TypeError: ``classes`` is one string, or a set.
        ValueError: fewer than two classes, or one twice; a number that is not above 0; a batch of one.
    """
    _check(classes, size, epochs, batch_size)
    if len(classes) < 2:
        raise ValueError(
            f"a segmentor tells classes apart, so it takes two or more, got {tuple(classes)}: name what else there is, "
            f'such as ("background", "{next(iter(classes))}"), and give its pixels a number of their own'
        )
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2: a batch norm cannot learn from one value; got {batch_size}")
    crop = (size[1], size[0])  # height first
    load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    train_pipeline = [
        *load,
        dict(type="RandomResize", scale=tuple(size), ratio_range=(0.75, 1.5), keep_ratio=True),
        dict(type="RandomCrop", crop_size=crop, cat_max_ratio=0.9),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PackSegInputs"),
    ]
    test_pipeline = [load[0], _resize(size), load[1], dict(type="PackSegInputs")]
    # mmseg's own takes parts and multiples of the picture as it is, whatever the network was trained at
    augmented = [
        [_resize(size, ratio) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
        [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
        [load[1]],
        [dict(type="PackSegInputs")],
    ]

    def dataset(split: str, pipeline: Any) -> Settings:
        return dict(
            _delete_=True,
            type="BaseSegDataset",
            data_root=str(folder),
            data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
            img_suffix=".jpg",
            seg_map_suffix=".png",
            ann_file=f"ImageSets/Segmentation/{split}.txt",
            metainfo=dict(classes=tuple(classes)),
            pipeline=pipeline,
        )

    training, validation = dataset(train, train_pipeline), dataset(val, test_pipeline)
    decode_head, auxiliary_head = (dict(num_classes=len(classes)) for _ in range(2))  # each may be changed by itself
    return dict(
        model=dict(data_preprocessor=dict(size=crop), decode_head=decode_head, auxiliary_head=auxiliary_head),
        crop_size=crop,
        train_pipeline=train_pipeline,
        test_pipeline=test_pipeline,
        tta_pipeline=[load[0], dict(type="TestTimeAug", transforms=augmented)],
        train_dataloader=dict(
            batch_size=batch_size,
            drop_last=True,
            persistent_workers=False,
            sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True),
            dataset=training,
        ),
        val_dataloader=dict(dataset=validation),
        test_dataloader=dict(dataset=validation),
        train_cfg=dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=max(1, epochs // 5)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
            dict(type="PolyLR", eta_min=1e-6, power=0.9, by_epoch=True, convert_to_iter_based=True),
        ],
        default_hooks=dict(logger=dict(log_metric_by_epoch=True), checkpoint=dict(by_epoch=True, interval=1)),
        log_processor=dict(by_epoch=True),
    )


def _resize(size: Tuple[int, int], ratio: float = 1.0) -> Settings:
    return dict(type="Resize", scale=tuple(round(ratio * side) for side in size), keep_ratio=True)


def _check(classes: Sequence[str], size: Tuple[int, int], epochs: int, batch_size: int) -> None:
    if isinstance(classes, str):
        raise TypeError(f'classes must be a tuple of names, got the string {classes!r}; one class is ("{classes}",)')
    if isinstance(classes, (set, frozenset)):  # the training and the test would number them each in its own way
        raise TypeError(f"classes must be a tuple of names, got {classes!r}: a set has another order in each run")
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be names, each once, got {tuple(classes)}")
    if len(size) != 2 or min(size) < 32:
        raise ValueError(f"size must be width and height, at least 32 for a network of stride 32, got {size}")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value != int(value) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, got {value}")
