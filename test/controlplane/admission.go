// SPDX-License-Identifier: Apache-2.0

package controlplane

// LimitSystemClasses is an AdmissionConfiguration that admits pods of the system priority classes only in namespaces
// with a quota for these classes. It is the example of Kubernetes' documentation. GKE refuses such pods with the same
// error.
const LimitSystemClasses = `
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: ResourceQuota
  configuration:
    apiVersion: apiserver.config.k8s.io/v1
    kind: ResourceQuotaConfiguration
    limitedResources:
    - resource: pods
      matchScopes:
      - {scopeName: PriorityClass, operator: In, values: [system-node-critical, system-cluster-critical]}
`
