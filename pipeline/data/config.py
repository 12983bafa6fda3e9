"""The `data:` block of params.yaml: data set, splits, augmentation, normalisation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Range = tuple[Positive, Positive]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PadCrop(_Frozen):
    """Pad with black on all sides, then cut a window of the old size at a random position.

    Attributes:
        name: this augmentation.
        padding: width of the border, in pixels.
    """

    name: Literal["pad_crop"] = "pad_crop"
    padding: Annotated[int, Field(ge=1)] = 4


class Flip(_Frozen):
    """Mirror left and right.

    Attributes:
        name: this augmentation.
        probability: fraction of the images that are mirrored.
    """

    name: Literal["flip"] = "flip"
    probability: Probability = 0.5


class RandomResizedCrop(_Frozen):
    """Cut a box of random area and aspect ratio and scale it to the network's size.

    Attributes:
        name: this augmentation.
        scale: least and largest area, as fractions of the image.
        ratio: least and largest width / height.
    """

    name: Literal["random_resized_crop"] = "random_resized_crop"
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _ordered(self) -> RandomResizedCrop:
        if self.scale[0] > self.scale[1] or self.scale[1] > 1 or self.ratio[0] > self.ratio[1]:
            raise ValueError(f"scale {self.scale} or ratio {self.ratio} is not an interval")
        return self


class ColorJitter(_Frozen):
    """Brightness, contrast and saturation times 1 +- the given amount, in random order.

    Attributes:
        name: this augmentation.
        brightness: largest relative change of the brightness.
        contrast: largest relative change of the contrast.
        saturation: largest relative change of the saturation.
    """

    name: Literal["color_jitter"] = "color_jitter"
    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: Probability = 0.4


class Lighting(_Frozen):
    """Noise along the principal components of ImageNet's colours (AlexNet, section 4.1).

    Attributes:
        name: this augmentation.
        std: standard deviation of the noise, in units of each component's own.
    """

    name: Literal["lighting"] = "lighting"
    std: NonNegative = 0.1


class Statistics(_Frozen):
    """Mean and standard deviation per channel of pixels in [0, 1]; one number for all is enough."""

    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    std: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _same_length(self) -> Statistics:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means but {len(self.std)} deviations")
        return self

    def for_channels(self, channels: int) -> Statistics:
        """The same with one number per channel.

        Raises:
            ValueError: there are neither one nor `channels` numbers.
        """
        if len(self.mean) == channels:
            return self
        if len(self.mean) != 1:
            raise ValueError(
                f"normalise: {len(self.mean)} means for images of {channels} channel(s); "
                "give one per channel, or a single one"
            )
        return Statistics(mean=self.mean * channels, std=self.std * channels)


def _named(value: Any) -> Any:
    """`flip` in YAML is short for `{name: flip}`."""
    return {"name": value} if isinstance(value, str) else value


Augmentation = Annotated[
    Annotated[
        PadCrop | Flip | RandomResizedCrop | ColorJitter | Lighting, Field(discriminator="name")
    ],
    BeforeValidator(_named),
]


class SquadConfig(_Frozen):
    """Settings for SQuAD; lengths are in tokens.

    Attributes:
        tokenizer: a folder, or a name on the hub.
        max_length: length of a window: question, piece of context, special tokens.
        stride: distance between the starts of two windows over a long context.
        query_length: longer questions are cut.
        dev_limit: number of dev questions to use; none = all.
        drop_guessed: drop training questions whose answer position is marked as guessed in a
            reconstructed file.
        drop_empty: drop training windows that do not contain the answer.
    """

    tokenizer: str
    max_length: Annotated[int, Field(ge=16)] = 384
    stride: Annotated[int, Field(ge=1)] = 128
    query_length: Annotated[int, Field(ge=1)] = 64
    dev_limit: Annotated[int, Field(ge=1)] | None = None
    drop_guessed: bool = False
    drop_empty: bool = False


SQUAD = ("squad", "squad_reconstructed")


class DataConfig(_Frozen):
    """The `data:` block. Validation resolves every "auto" and the preset.

    Attributes:
        name: the data set; names are listed below.
        preset: defaults for missing keys: a paper's augmentation, statistics and image size
            (presets.py).
        root: folder of the raw files.
        download: fetch missing raw files; false refuses instead.
        val_size: number of training images, stratified by class, that become the validation split;
            none = no validation split. For SQuAD it counts questions.
        split_seed: seed that chooses them.
        limit: number of the remaining training images to use, also stratified, for runs that fit a
            CPU; none = all. For SQuAD it counts questions.
        augment: a list of augmentations, none, or auto for the data set's usual ones.
        normalise: auto (the data set's usual statistics), imagenet, computed (from the training
            split), or `{mean: [...], std: [...]}`.
        size: side of the network's input, in pixels; none = that of the images.
        rgb: repeat a grey channel three times.
        squad: settings for the SQuAD data sets, which have no images.
    """

    name: str
    preset: str | None = None
    root: str | None = "data/raw"
    download: bool = True
    val_size: Annotated[int, Field(ge=1)] | None = None
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    augment: tuple[Augmentation, ...] = ()
    normalise: Literal["computed"] | Statistics = "computed"
    size: Annotated[int, Field(ge=1)] | None = None
    rgb: bool = False
    squad: SquadConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, block: Any) -> Any:
        from pipeline.data.presets import resolve

        return resolve(block) if isinstance(block, dict) else block

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if (self.name in SQUAD) != (self.squad is not None):
            raise ValueError(f"squad: a block for {' and '.join(SQUAD)}, and for these only")
        if self.squad and (self.augment or self.size or self.rgb or self.normalise != "computed"):
            raise ValueError("augment, normalise, size, rgb: for images; squad has none")
        if self.name == "imagefolder" and self.normalise == "computed":
            raise ValueError(
                "normalise: 'computed' would decode the whole folder; use 'imagenet' or mean/std"
            )
        if self.name == "imagefolder" and self.size is None:
            raise ValueError("size: imagefolder needs the side of the network's input, e.g. 224")
        if self.name != "digits" and self.root is None:
            raise ValueError(f"root: {self.name} needs a folder")
        colour = {"color_jitter", "lighting"} & {a.name for a in self.augment}
        if colour and self.name in ("digits", "mnist", "fashion_mnist") and not self.rgb:
            raise ValueError(f"augment: {sorted(colour)} need colour images; set rgb: true")
        return self
