"""Adds the migrations to what setup.cfg says: `alembic/` is installed as `afterhours_service.migrations`."""

import tempfile

from setuptools import find_packages, setup

MIGRATIONS = "afterhours_service.migrations"

# Not in ./build: what the build of another release left there, such as a migration, would be installed too.
with tempfile.TemporaryDirectory() as folder:
    setup(
        packages=[*find_packages(include=["afterhours_service*"]), MIGRATIONS, f"{MIGRATIONS}.versions"],
        package_dir={MIGRATIONS: "alembic"},
        options={"build": {"build_base": folder}},
    )
