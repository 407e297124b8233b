"""Files that users put beside each other by hand: tables of file names, folders and archives of images.

Such files come from anywhere. Nothing is ever extracted or written; a name that leads out of its folder is refused; an
image is measured before it is decoded. Every fault is a `ValueError` that names the file.
"""

import csv
import pathlib
import stat
import zipfile
import zlib
from types import TracebackType

import numpy as np
import tensorflow as tf

PIXELS = 50_000_000  # of an image; the largest of ImageNet have half as many
BYTES = 100_000_000  # of an image file
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)  # of an archive


def read_table(path: pathlib.Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Returns the named columns of a CSV file with a header, row by row.

    Args:
        path: the file, UTF-8.
        columns: their names; the file may have others.

    Returns:
        One tuple for each row.

    Raises:
        ValueError: no CSV, a column is missing, a row is short or has an empty field, or there is no row.
    """
    expected = f"expected a CSV file whose first line names the columns {', '.join(columns)}"
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                found = ", ".join(map(repr, reader.fieldnames or ()))[:200] or "nothing"
                raise ValueError(f"{str(path)!r} begins with the columns {found}, {expected}: put the header in place.")
            for row in reader:
                values = tuple(row[column] for column in columns)
                if not all(values):
                    raise ValueError(
                        f"{str(path)!r} has an empty field in line {reader.line_num}, expected {' and '.join(columns)} "
                        "in every line: repair the file or fetch it again."
                    )
                rows.append(values)
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}), {expected}: fetch the file again.") from error
    if not rows:
        raise ValueError(f"{str(path)!r} has no row, {expected} and at least one row: fetch the file again.")
    return rows


def check_inside(name: str, where: str) -> None:
    """Raises ValueError unless `name` is a plain path downwards: no root, drive, `..`, backslash or control character.

    Args:
        name: a file's name, as a table or an archive gives it.
        where: what gave it, for the message.

    Raises:
        ValueError: the name leads elsewhere.

    Example:
        >>> check_inside("n01532829/5.jpg", "train.csv")
        >>> check_inside("../5.jpg", "train.csv")
        Traceback (most recent call last):
        ValueError: 'train.csv' names the file '../5.jpg', expected a name inside the folder of images: ...
    """
    parts = name.removesuffix("/").split("/")
    plain = name.isprintable() and "\\" not in name and ":" not in name
    if not plain or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{where!r} names the file {name[:200]!r}, expected a name inside the folder of images: "
            "this file may be forged; fetch it again, from a source that you trust."
        )


def fingerprint(files: list[pathlib.Path]) -> dict[str, int]:
    """Returns the name and the size of every file; folders count as 0."""
    return {path.name: path.stat().st_size if path.is_file() else 0 for path in files}


class Images:
    """A folder or a ZIP archive of images, read in place.

    Args:
        path: the folder, or the archive.

    Raises:
        ValueError: the archive is none, or holds names that lead out of it.

    Example:
        >>> import io, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.jpg").write_bytes(b"...")
        >>> with Images(folder) as images:
        ...     print(images.read("a.jpg"))
        b'...'
    """

    def __init__(self, path: pathlib.Path):
        """Open the archive and check its names."""
        self.path, self._archive, self._members = path, None, {}
        if path.is_dir():
            return
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{str(path)!r} is not a whole ZIP archive ({error}), expected one of images: fetch the file again."
            ) from error
        for member in self._archive.infolist():
            check_inside(member.filename, str(path))
            self._members[member.filename.removeprefix("images/")] = member

    def __enter__(self) -> "Images":
        """Return self."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the archive."""
        if self._archive is not None:
            self._archive.close()

    def read(self, name: str) -> bytes:
        """Returns the bytes of an image file.

        Args:
            name: its name below the folder; in an archive, with or without `images/` before it.

        Raises:
            ValueError: a name that leads elsewhere; no such file; or one that is too large or damaged.
        """
        check_inside(name, str(self.path))
        try:
            return self._read(name)
        except (*_UNREADABLE, OSError, KeyError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError | KeyError) else f"is damaged ({error})"
            raise ValueError(
                f"The image {name!r} {what} in {str(self.path)!r}, expected every file that the tables name: "
                "fetch the images again, or take the line out."
            ) from error

    def _read(self, name: str) -> bytes:
        if self._archive is None:
            file = self.path / name
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                raise OSError("it is no regular file")
            self._check_size(name, status.st_size)
            return file.read_bytes()
        member = self._members[name]
        self._check_size(name, member.file_size)
        return self._archive.read(member)

    def _check_size(self, name: str, size: int) -> None:
        if size > BYTES:
            raise ValueError(
                f"The image {name!r} in {str(self.path)!r} has {size} bytes, expected at most {BYTES}: "
                "this is no photograph; fetch the images again, from a source that you trust."
            )


def decode_image(data: bytes, name: str, channels: int = 3) -> np.ndarray:
    """Returns a JPEG or PNG image as uint8 [height, width, channels].

    Args:
        data: the bytes of the file.
        name: its name, for the message.
        channels: 3 for colours, 1 for grey.

    Raises:
        ValueError: another format, a truncated or damaged file, or more than `PIXELS` pixels.
    """
    try:
        height, width = _measure(data)
        if not 0 < height * width <= PIXELS:
            raise ValueError(f"{width} by {height} pixels, where at most {PIXELS} in all are read")
        return decode(data, channels).numpy()
    except (ValueError, tf.errors.OpError) as error:
        reason = error.message if isinstance(error, tf.errors.OpError) else str(error)
        raise ValueError(
            f"The image {name!r} cannot be read ({' '.join(reason.split())[:200]}), expected a whole JPEG or PNG file: "
            "fetch it again, or leave it out."
        ) from error


def decode(data: tf.Tensor | bytes, channels: int = 3) -> tf.Tensor:
    """Returns a JPEG or PNG image as uint8 [height, width, channels], the same on every machine, in any context."""
    return tf.io.decode_jpeg(data, channels=channels, dct_method="INTEGER_ACCURATE")  # and PNG, says its page


def resize(image: tf.Tensor | np.ndarray, size: tuple[int, int]) -> tf.Tensor:
    """Returns a uint8 image at the height and width `size`, by LANCZOS3 with antialiasing, as MAML's script does."""
    small = tf.image.resize(image, size, method=tf.image.ResizeMethod.LANCZOS3, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(small), 0, 255), tf.uint8)


def decode_sized(data: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """Returns a JPEG or PNG image as uint8 of this height, width and number of channels, resized where need be."""
    image = decode(data, shape[2])
    image = tf.cond(tf.reduce_all(tf.shape(image)[:2] == shape[:2]), lambda: image, lambda: resize(image, shape[:2]))
    return tf.ensure_shape(image, shape)


def _measure(data: bytes) -> tuple[int, int]:
    """Returns height and width as the header says, without decoding the image."""
    if data[:2] == b"\xff\xd8":
        height, width, _ = tf.io.extract_jpeg_shape(data).numpy().tolist()
        return height, width
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    raise ValueError(f"a file of {len(data)} bytes that begins as neither")
