# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an object says of itself, as the XML that every D-Bus client can read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdump_service.bus.members import Argument, Interface

__all__ = ["describe_object"]

_HEAD = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    '  "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
# D-Bus specification, "Standard Interfaces".
_EVERYWHERE = """\
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
  </interface>
"""
_WITH_PROPERTIES = """\
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="props" type="a{sv}" direction="out"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
"""
_OF_MANAGERS = """\
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
"""
_CONSTANT = '<annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/>'


def describe_object(interfaces: Sequence[Interface], children: Iterable[str], *, managed: bool) -> str:
    """The introspection data of an object with these interfaces and names of child nodes."""
    parts = [_HEAD, "<node>\n", _EVERYWHERE]
    if interfaces:
        parts.append(_WITH_PROPERTIES)
    if managed:
        parts.append(_OF_MANAGERS)
    parts += (_interface(interface) for interface in interfaces)
    parts += (f'  <node name="{name}"/>\n' for name in children)
    return "".join([*parts, "</node>\n"])


def _interface(interface: Interface) -> str:
    lines = [f'  <interface name="{interface.name}">']
    for method in interface.methods.values():
        arguments = [_argument(each, "in") for each in method.takes]
        if method.gives is not None:
            arguments.append(_argument(method.gives, "out"))
        lines.append(f'    <method name="{method.name}">{"".join(arguments)}</method>')
    for prop in interface.properties.values():
        access = "read" if prop.write is None else "readwrite"
        inside = _CONSTANT if prop.constant else ""
        lines.append(
            f'    <property name="{prop.name}" type="{prop.signature}" access="{access}">{inside}</property>'
        )
    return "\n".join([*lines, "  </interface>\n"])


def _argument(argument: Argument, direction: str) -> str:
    return f'<arg name="{argument.name}" type="{argument.signature}" direction="{direction}"/>'
