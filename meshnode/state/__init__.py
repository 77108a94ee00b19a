"""meshnode.state"""
