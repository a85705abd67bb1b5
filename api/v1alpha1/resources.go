package v1alpha1

import "k8s.io/apimachinery/pkg/api/resource"

// Resources are hard limits of one environment.
//
// +kubebuilder:validation:XValidation:rule="!has(self.cpuBurst) || has(self.cpu)",message="cpuBurst needs cpu"
// +kubebuilder:validation:XValidation:rule="!has(self.memoryHigh) || has(self.memory)",message="memoryHigh needs memory"
type Resources struct {
	// cpu in CPUs: "500m" is half of one.
	// +optional
	CPU *resource.Quantity `json:"cpu,omitempty"`

	// cpuBurst in CPUs may be used beyond cpu for short times, out of what was
	// left unused before. At most cpu; absent is none.
	// +optional
	CPUBurst *resource.Quantity `json:"cpuBurst,omitempty"`

	// cpuWeight is the share beside other environments while the node's CPUs are
	// busy. Absent follows from cpu: 100 for one CPU.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	// +optional
	CPUWeight *int64 `json:"cpuWeight,omitempty"`

	// memory in bytes: "2Gi".
	// +optional
	Memory *resource.Quantity `json:"memory,omitempty"`

	// memoryHigh in bytes slows an environment down that uses more, and takes
	// memory back from it, before memory kills. At most memory; absent is no such
	// mark. Needs the memory controller of cgroup v2.
	// +optional
	MemoryHigh *resource.Quantity `json:"memoryHigh,omitempty"`

	// swap in bytes that may be used beside memory. Absent is none. Needs the
	// memory controller of cgroup v2 with swap.
	// +optional
	Swap *resource.Quantity `json:"swap,omitempty"`

	// pids bounds processes and threads together.
	// +kubebuilder:validation:Minimum=16
	// +kubebuilder:validation:Maximum=4194304
	// +optional
	PIDs *int64 `json:"pids,omitempty"`

	// io bounds reading from and writing to each block device that holds the
	// environments' files. Absent is no limit.
	// +optional
	IO *IO `json:"io,omitempty"`

	// disk in bytes bounds what the environment's own files take, on each filesystem
	// that holds some. Absent is what the node keeps free for all. Needs project
	// quotas (ext4 or xfs, mount option prjquota); a node without prepares no slots
	// of the class.
	// +optional
	Disk *resource.Quantity `json:"disk,omitempty"`

	// openFiles bounds the open files of each process. Absent is as many as the
	// agent may give, at most 1048576.
	// +kubebuilder:validation:Minimum=64
	// +kubebuilder:validation:Maximum=1048576
	// +optional
	OpenFiles *int64 `json:"openFiles,omitempty"`
}

// IO is what may be read and written in a second.
//
// +kubebuilder:validation:MinProperties=1
type IO struct {
	// readBytes and writeBytes a second: "50Mi".
	// +optional
	ReadBytes *resource.Quantity `json:"readBytes,omitempty"`
	// +optional
	WriteBytes *resource.Quantity `json:"writeBytes,omitempty"`

	// readOps and writeOps are requests a second.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	// +optional
	ReadOps *int64 `json:"readOps,omitempty"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	// +optional
	WriteOps *int64 `json:"writeOps,omitempty"`
}

// EnvironmentResources are limits that one environment may have of its own.
type EnvironmentResources struct {
	// cpu in CPUs: "500m" is half of one.
	// +optional
	CPU *resource.Quantity `json:"cpu,omitempty"`

	// memory in bytes: "2Gi". It is not lowered below what is in use.
	// +optional
	Memory *resource.Quantity `json:"memory,omitempty"`

	// cpuBurst in CPUs may be used beyond cpu for short times, at most cpu. "0" is
	// none.
	// +optional
	CPUBurst *resource.Quantity `json:"cpuBurst,omitempty"`
}
