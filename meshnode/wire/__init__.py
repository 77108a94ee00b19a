"""meshnode.wire"""
