# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crashes real kernels in virtual machines and reads what the project saved of them.

`lab.Lab` is the way in: it makes what is slow once (`cache`, `tree`, `disk`, `symbols`), starts machines
(`machine`) and opens dumps with other people's tools (`debuggers`). A case needs only the fixtures of
`conftest`.
"""
