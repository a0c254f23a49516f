"""Program that runs inside a checkout of any commit of Rampart, and imports nothing of this one."""
