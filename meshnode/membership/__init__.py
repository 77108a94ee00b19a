"""meshnode.membership"""
