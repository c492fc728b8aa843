"""Puts the top-level folder `data/` into the package as `ip2p._data`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ip2p", "ip2p.*", "flows", "flows.*"]), "ip2p._data"],
    package_dir={"ip2p._data": "data"},
    package_data={
        "ip2p": ["py.typed"],
        "ip2p.app": ["page.css", "page.js"],
        "ip2p.report": ["templates/*.jinja"],
        "ip2p.training": ["launch_configs/*.yaml"],
        "ip2p._data": ["**/*"],
    },
)
