"""What our servers on the JVM have in common."""

from collections.abc import Sequence
from pathlib import Path

# Packages that libraries from before Java's modules open by reflection.
_OPENED = (
    *("java.base/java.lang", "java.base/java.lang.invoke", "java.base/java.lang.module", "java.base/java.lang.reflect"),
    *("java.base/java.io", "java.base/java.math", "java.base/java.net", "java.base/java.nio", "java.base/java.util"),
    *("java.base/java.util.concurrent", "java.base/java.util.concurrent.atomic", "java.base/jdk.internal.loader"),
    *("java.base/jdk.internal.math", "java.base/jdk.internal.module", "java.base/jdk.internal.ref"),
    *("java.base/jdk.internal.reflect", "java.base/jdk.internal.util.jar", "java.base/sun.nio.ch"),
    *("java.base/sun.nio.cs", "java.base/sun.security.action", "java.base/sun.util.calendar"),
    "jdk.management/com.sun.management.internal",
)


def java(libraries: Path, main: str, *arguments: str, heap: str, options: Sequence[str] = ()) -> tuple[str, ...]:
    """The command that runs a class of a folder of jars."""
    return (
        *("nice", "-n", "5", "java", f"-Xmx{heap}"),
        *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED),
        *("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"),
        *(*options, "-cp", f"{libraries}/*", main, *arguments),
    )
