"""mlcorr inside other people's loops: one small program for each, all on data that come with the installation.

For several processes without any framework see `examples.distributed`.
"""
