"""meshnode.net"""
