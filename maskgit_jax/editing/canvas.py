"""A picture in an edit: fitted to the model with its mask, put back afterwards.

    picture = prepare(image, mask, model.config.tokenizer)
    masked = picture.masked                    # Bool[N]: the ids to be sampled
    made = ...                                 # UInt8[S, S, 3]: from picture.square and masked
    result = finish(picture, made)             # UInt8[H, W, 3]: as large as `image`

No flags are defined here.
"""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from maskgit_jax.config import TokenizerConfig
from maskgit_jax.editing.blend import blend, blend_radius, blend_weights
from maskgit_jax.editing.masks import fit_mask, latent_mask
from maskgit_jax.errors import InputError, notice
from maskgit_jax.images import as_pixels, name_of, on_paper

_WHITE_FROM = 128
_MOST_MASKED = 0.9  # without a notice
_OUTLINE = (230, 0, 60)


class EditPicture(NamedTuple):
    """What `prepare` gives.

    Attributes:
      original: the whole picture, at its own size.
      mask: what is to be sampled again.
      square: the whole picture at the model's size; beside one that is not square, its edge
        pixels are repeated.
      masked: the ids that are to be sampled, those that the mask touches.
      height: rows of the square that the picture fills.
      width: columns of it; the picture is at the top left.
      blend_radius: how far beyond the mask pixels may change: the side of a token.
    """

    original: UInt8[np.ndarray, "H W 3"]
    mask: Bool[np.ndarray, "H W"]
    square: UInt8[np.ndarray, "S S 3"]
    masked: Bool[np.ndarray, "N"]
    height: int
    width: int
    blend_radius: int


def prepare(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], tokenizer: TokenizerConfig
) -> EditPicture:
    """Fits a picture of any size, and the mask on it, to the model's square."""
    size, latent_size = tokenizer.image_size, tokenizer.latent_size
    scale = size / max(mask.shape)
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    small = resize(image, height, width)
    small_mask = np.zeros((size, size), bool)
    small_mask[:height, :width] = fit_mask(mask, height, width)
    return EditPicture(
        original=image,
        mask=mask,
        square=np.pad(small, ((0, size - height), (0, size - width), (0, 0)), mode="edge"),
        masked=latent_mask(small_mask, latent_size),
        height=height,
        width=width,
        blend_radius=blend_radius(tokenizer, scale),
    )


def finish(picture: EditPicture, made: UInt8[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """What was made, in the original's place and size.

    All of the mask is from `made`; from there it fades into the original, whose bytes are
    untouched beyond `blend_radius`.
    """
    large = resize(made[: picture.height, : picture.width], *picture.mask.shape)
    return blend(picture.original, large, blend_weights(picture.mask, picture.blend_radius))


def resize(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The picture stretched to a size (antialiased Lanczos); the same pixels at its own."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def read_mask(
    mask: str | os.PathLike[str] | Image.Image | np.ndarray, height: int, width: int
) -> tuple[Bool[np.ndarray, "_ _"], bool]:
    """What a mask lets be sampled again, and whether it had to be stretched to the size.

    That is what is transparent in it (alpha below 128); in a mask where nothing is, what is white
    (128 and above). Transparency, and a mask of more than 90 % of the picture, are told by
    `Notice`.

    Args:
      mask: as for `images.as_image`.
      height: of the picture.
      width: of the picture.

    Raises:
      InputError: no picture, nothing to be sampled again in it, or nothing else.
    """
    pixels, name = as_pixels(mask), f"the mask {name_of(mask, '')}".rstrip()
    kind, region = "transparent", pixels[..., 3:].min(axis=-1, initial=255) < _WHITE_FROM
    if not region.any():
        kind, region = "white", on_paper(pixels).mean(axis=-1) >= _WHITE_FROM
    if region.all() or not region.any():
        raise InputError(
            f"{name} {f'is {kind} all over' if region.all() else 'has no white'}; expected white "
            "or transparent where the picture is to be sampled again and black where it stays"
        )
    stretched = region.shape != (height, width)
    if stretched:
        region = fit_mask(region, height, width)
        if region.all():
            raise InputError(
                f"{name} covers all of the picture at its {width}x{height} pixels; expected some "
                "black: give a mask of the picture's size"
            )
    share = f"{100 * region.mean():.0f} % of the picture"
    if kind == "transparent":
        notice(f"{name}: what is transparent is sampled again, {share}")
    elif region.mean() > _MOST_MASKED:
        notice(f"{name} remakes {share}")
    return region, stretched


def box_mask(
    top: int, left: int, box_height: int, box_width: int, height: int, width: int
) -> Bool[np.ndarray, "_ _"]:
    """The mask of a box, in pixels of a picture of `height` and `width`.

    Raises:
      InputError: a side below 1, a box that leaves the picture, or all of the picture.
    """
    box = f"box {top},{left},{box_height},{box_width} (top,left,height,width)"
    if min(box_height, box_width) < 1:
        raise InputError(f"{box}: height and width must be 1 or more")
    if min(top, left) < 0 or top + box_height > height or left + box_width > width:
        raise InputError(f"{box} leaves the picture of {width}x{height} pixels (width x height)")
    if (box_height, box_width) == (height, width):
        raise InputError(f"{box} is all of the picture: leave something to go by")
    mask = np.zeros((height, width), bool)
    mask[top : top + box_height, left : left + box_width] = True
    return mask


def outlined(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with a red line along the mask's inner edge."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    image = image.copy()
    image[mask & ~inner] = _OUTLINE
    return image
