"""The recipes of cluster/, on real schedulers: as root, with Debian's packages in packages.txt."""
