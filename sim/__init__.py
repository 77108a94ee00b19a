"""meshnode.sim"""
