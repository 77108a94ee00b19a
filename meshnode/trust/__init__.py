"""meshnode.trust"""
