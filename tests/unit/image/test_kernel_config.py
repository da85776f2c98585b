# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the configuration of a kernel says, in the places where distributions put it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdump_service.image.kernel_config import configuration_file, unpacks_lz4_among_archives

DEBIAN = "boot/config-6.12.0-1-amd64"
FEDORA = "usr/lib/modules/6.12.0-1-amd64/config"
WITH = "CONFIG_RD_GZIP=y\nCONFIG_RD_LZ4=y\n"


@pytest.mark.parametrize("place", [DEBIAN, FEDORA])
@pytest.mark.parametrize(("text", "can"), [
    (WITH, True), ("# CONFIG_RD_LZ4 is not set\n", False), ("", False), ("CONFIG_RD_LZ4=m\n", False),
    ("XCONFIG_RD_LZ4=y\nCONFIG_RD_LZ4=yes\n", False), ("\udcff\nCONFIG_RD_LZ4=y\n", True),
])  # fmt: skip
def test_built_in(tmp_path: Path, place: str, text: str, can: bool) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert configuration_file(tmp_path, "6.12.0-1-amd64") == tmp_path / place
    assert unpacks_lz4_among_archives(tmp_path, "6.12.0-1-amd64") is can


def test_not_installed(tmp_path: Path) -> None:
    (tmp_path / DEBIAN).mkdir(parents=True)
    assert configuration_file(tmp_path, "6.12.0-1-amd64") is None
    assert not unpacks_lz4_among_archives(tmp_path, "6.12.0-1-amd64")


@pytest.mark.parametrize(("release", "can"), [
    ("5.13.19", False), ("5.14.0-503.el9.x86_64", True), ("5.9.0", False), ("4.18.0", False), ("6.1.0", True),
    ("10.0", True), ("next-20261126", False),
])  # fmt: skip
def test_kernel_that_is_too_old(tmp_path: Path, release: str, can: bool) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / f"boot/config-{release}").write_text(WITH)
    assert unpacks_lz4_among_archives(tmp_path, release) is can
