"""meshnode.models.runtimes"""
