"""The composition root: settings to objects to servers. The only place that builds."""
